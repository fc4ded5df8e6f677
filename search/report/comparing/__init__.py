"""Several plans in one file: of models, of checkpoints, of budgets."""
