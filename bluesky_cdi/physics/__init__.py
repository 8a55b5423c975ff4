"""Small, pure, differentiable functions of diffraction physics. Import the module that you need."""
