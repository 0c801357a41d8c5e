"""The frozen encoder, the prompt bank, the router, and the forward they share."""
