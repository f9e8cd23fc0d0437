"""How requests, workers and time are brought together: clock, flights, the invalidation log."""
