"""Workers, beats, servers, broker and database in simulated time, from a seed."""
