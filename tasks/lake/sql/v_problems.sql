-- Files of the lake that were left out when it was opened, and rows that are missing.
-- @kind damaged, foreign, incompatible, missing or uncommitted.
-- @table_name Table that the file belongs to.
-- @path The file.
-- @detail What is wrong with it.
CREATE VIEW v_problems AS
SELECT kind, table_name, path, detail
FROM lake_problems
ORDER BY kind, path;
