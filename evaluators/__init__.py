"""From a file and labelled data to a verdict. Knows no training."""
