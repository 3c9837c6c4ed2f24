"""The report of a run: a summary of its folder, and one page that shows the summary."""
