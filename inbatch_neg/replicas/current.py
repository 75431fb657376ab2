"""The replicas on the backend that Keras uses."""

from inbatch_neg.backends import engine
from inbatch_neg.replicas.base import Replicas

replicas: Replicas = engine(__package__).Replicas()
