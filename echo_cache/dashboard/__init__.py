"""
A page and a JSON interface that show what the cache does, and steer it.

    mount(app, auth=os.environ["DASHBOARD_TOKEN"])  # at /_cache

    app        what is answered: Dashboard, mount
    access     who may come in
    asked      what is asked for, with bounds
    events     the stream of statistics
    openapi    the description of the JSON interface
    static     the files of the page

The one rule: closed until it is said who may come in.
"""

from echo_cache.dashboard.access import Auth
from echo_cache.dashboard.app import Dashboard, mount

__all__ = ["Auth", "Dashboard", "mount"]
