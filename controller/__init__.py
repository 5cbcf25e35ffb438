"""The controller: knows which workers live, tells gateways, speaks FastChat's control wire."""
