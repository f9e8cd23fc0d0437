"""
The command line. What it decides is in functions without a terminal.

    doctor   what is wrong with a Redis, and what to do about it
    explain  why a response was cached or was not
    sitemap  which URLs a file names
    bench    what the cache costs on this machine
"""
