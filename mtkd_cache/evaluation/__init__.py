"""What a trained network is worth: Dice, the multilabel subset, the model card."""
