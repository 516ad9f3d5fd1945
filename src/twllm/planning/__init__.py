"""Will it fit, how long, for how much: memory, time and cost of a training phase before a GPU is rented. No torch."""
