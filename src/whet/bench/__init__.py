"""Benchmarks: refinement methods and their peers over data sets, annotators and gold budgets."""
