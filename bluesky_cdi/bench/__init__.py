"""What the command ``bluesky-cdi bench`` measures.

`cases`, `recorded` and `exchange` hold the scans, `methods`, `with_ours` and `with_ptychi` the ways to an object,
`suites` the questions, one a module, and `reports` what is printed and drawn.
"""
