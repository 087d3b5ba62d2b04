"""The prepared model: fixed shapes, captured or compiled, equal to the eager one."""
