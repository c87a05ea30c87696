"""A page of tables and pictures as plain data, written as Markdown and as HTML."""
