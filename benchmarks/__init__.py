"""`make bench`: every figure of the README, measured with its baselines in one run.

    python -m benchmarks all          the whole of it, hours on 2 cores
    python -m benchmarks serve --quick --only http

Parts: `serve` (tokens a second), `swap` (masks in place), `cold` (first tokens of cold masks),
`format` (the file). Each writes `results/latest/PART.json`, the raw samples and the page.
"""
