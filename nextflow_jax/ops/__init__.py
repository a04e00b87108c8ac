"""Operations with more than one implementation: one signature each, a plain reference beside the fast ones."""
