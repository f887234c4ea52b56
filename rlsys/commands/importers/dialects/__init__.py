"""The option tables of the projects whose recipes can be imported, and the rules that a table cannot express."""
