"""`python -m csd_nerf`, and so `torchrun -m csd_nerf`: the command `csd-nerf`."""

from csd_nerf.cli import main

if __name__ == "__main__":
    main()
