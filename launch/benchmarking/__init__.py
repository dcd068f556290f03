"""What launch/benchmark.py times, a module for each thing that is timed."""
