"""The cache under other libraries; each module needs the library that it is named after, and nothing else does."""
