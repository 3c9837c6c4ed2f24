"""Labels that are classes: risks, class ratios, encoders, the classifier and its refiner."""
