"""Sites of other kinds than the tests' own, and what a person does in each of them."""
