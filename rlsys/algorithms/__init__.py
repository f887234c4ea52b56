"""Pure torch functions: advantages, policy losses, KL estimators, aggregation. Importing needs no Ray or engine."""
