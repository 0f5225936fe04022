"""The whole stack on one machine: started, fed and watched."""
