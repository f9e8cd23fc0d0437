"""
What an operator may see and do, as plain data: the dashboard and the command line are translations onto it.

The one rule: nothing here blocks requests. What is long goes in pages, and what is unbounded is cut.

    manager    Management: statistics, lists, invalidation, the levels
    entries    what is stored, as an operator sees it
    why        sentences about an entry
    refusals   what was not stored lately
"""

from echo_cache.management.manager import Management
from echo_cache.management.refusals import RecentRefusals

__all__ = ["Management", "RecentRefusals"]
