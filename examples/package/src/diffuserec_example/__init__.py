"""Methods of your own for diffuserec, without a fork: one file each."""
