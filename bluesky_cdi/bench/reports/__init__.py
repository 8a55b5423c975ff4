"""Results of suites as text and figures."""
