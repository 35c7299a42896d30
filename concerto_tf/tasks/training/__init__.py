"""What `train` and `finetune` share: devices, labels, and the folder of a training."""
