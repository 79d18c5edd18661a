"""What distillation gains: students of several objectives, chosen among on validation, confirmed on test."""
