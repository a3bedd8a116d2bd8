"""What goes out: label maps, volumes, Dice and pictures."""
