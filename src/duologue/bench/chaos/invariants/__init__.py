"""What must hold whatever happens: each invariant is a function of its own over a run's history."""
