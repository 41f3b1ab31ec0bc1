CREATE DATABASE ledger OWNER tokensweep;
