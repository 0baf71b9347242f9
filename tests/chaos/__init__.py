"""A whole deployment, killed and cut off at random, which must lose no grant."""
