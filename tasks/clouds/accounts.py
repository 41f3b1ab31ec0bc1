"""Whose servers a vendor module sees, where it can tell.

A ledger may hold servers of two accounts of one vendor: two teams, a rotated credential, a sweep that is resumed from
another shell. Credentials of the one get complete listings without the other's servers, and "there is none" for them.
"""

from __future__ import annotations

from tasks.clouds.base import Cloud, KnowsAccount
from tasks.domain.lifecycle import LedgerRow
from tasks.domain.reaping import out_of_sight


def account_of(cloud: Cloud) -> str:
    """Whose servers it sees; "" where the vendor cannot tell. Raises what the vendor's SDK raises."""
    return cloud.account() if isinstance(cloud, KnowsAccount) else ""


def why_unseen(cloud: Cloud, row: LedgerRow) -> str:
    """Why a delete of the row's server would be answered with "there is none", which would be taken for its end; ""
    where it would not. An account that cannot be told keeps no delete from being sent."""
    try:
        account = account_of(cloud)
    except Exception:
        return ""
    if not out_of_sight(row, account):
        return ""
    return f"It is in the account {row.account}; these credentials are of {account}."
