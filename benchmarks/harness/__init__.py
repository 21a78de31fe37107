"""Harness of the benchmarks: networks, arms, windows, timing, counting, reports.

Scripts print a markdown table and, last, one line of JSON (`report`).
"""
