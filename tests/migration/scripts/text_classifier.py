"""A text classifier in the style of Opacus' IMDb example, with ghost clipping."""

import opacus
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset
from opacus.layers import DPMultiheadAttention

DELTA = 1e-3


class SampleNet(nn.Module):
    def __init__(self, vocab_size: int):
        super().__init__()
        self.emb = nn.Embedding(vocab_size, 16)
        self.att = DPMultiheadAttention(16, 2, batch_first=True)
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.fc1 = nn.Linear(16, 16)
        self.fc2 = nn.Linear(16, 2)

    def forward(self, x):
        x = self.emb(x)
        x = self.att(x, x, x)[0]
        x = x.transpose(1, 2)
        x = self.pool(x).squeeze(2)
        x = self.fc1(x)
        return self.fc2(torch.relu(x))


torch.manual_seed(0)
words = torch.randint(50, (96, 12))
train_loader = DataLoader(TensorDataset(words, (words.float().mean(1) > 24.5).long()), batch_size=24, shuffle=True)
model = SampleNet(50).train()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
criterion = nn.CrossEntropyLoss(reduction="mean")

privacy_engine = opacus.PrivacyEngine(accountant="prv")
model, optimizer, criterion, train_loader = privacy_engine.make_private(
    module=model, optimizer=optimizer, data_loader=train_loader, criterion=criterion,
    noise_multiplier=1.0, max_grad_norm=1.0, poisson_sampling=False, grad_sample_mode="ghost",
)

for epoch in range(2):
    for data, label in train_loader:
        optimizer.zero_grad()
        loss = criterion(model(data), label)
        loss.backward()
        optimizer.step()
    epsilon = privacy_engine.get_epsilon(delta=DELTA)
    print(f"Train Epoch: {epoch} \t (ε = {epsilon:.2f}, δ = {DELTA})")
