"""A hostile EHR among those that the site knows, and a machine that plays its part."""
