"""Tables: how cells are spelled, what is declared of columns, what a file looks like."""
