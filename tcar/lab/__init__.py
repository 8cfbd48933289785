"""What notebooks and commands call: parameters, results, the steps of a run, figures, the paper."""
