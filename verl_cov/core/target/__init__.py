"""Names an entropy and holds it by moving one number of a control, once a rollout. Plain numbers, no tensors."""
