"""The option tables of the projects whose recipes can be imported, and the rules that a table cannot express.

Reading their files, applying the tables and writing ours is common to all and belongs one folder up.
"""
