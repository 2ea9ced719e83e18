"""What the user writes: recipes, read, checked and explained."""
