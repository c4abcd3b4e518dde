"""Who a user is: tokens, and the secret that signs them."""
