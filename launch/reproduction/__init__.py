"""The paper's tables and figures: what each consists of, how it is run, and the page that comes of it."""
