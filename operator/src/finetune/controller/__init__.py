"""The operator: watches TrainingRuns and brings each of them to its end."""
