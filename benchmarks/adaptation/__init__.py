"""Why adaptation gains or loses: trainings watched epoch by epoch, on the development cells."""
