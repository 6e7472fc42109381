"""Names by language, character by character, in the style of Opacus' char-LSTM example."""

import torch
from opacus import PrivacyEngine
from opacus.layers import DPGRU, DPLSTM
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset


class CharByteEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.start_token = "<s>"

    def forward(self, s: str) -> torch.LongTensor:
        return torch.LongTensor([1, *(2 + byte for byte in s.encode())])


class NamesDataset(Dataset):
    def __init__(self):
        self.encoder = CharByteEncoder()
        names = ["anna", "otto", "maria", "li", "wang", "chen", "zhao", "karl", "eva", "xu"] * 8
        self.data = [(name, int(name in ("li", "wang", "chen", "zhao", "xu"))) for name in names]

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        name, label = self.data[i]
        return self.encoder(name), label


def padded_collate(batch):
    longest = torch.zeros(8, dtype=torch.long)
    x = pad_sequence([longest, *(elem[0] for elem in batch)], batch_first=True, padding_value=0)[1:]
    y = torch.stack([torch.tensor(elem[1]).long() for elem in batch])
    return x, y


class CharNNClassifier(nn.Module):
    rnn_types = {"lstm": DPLSTM, "gru": DPGRU}

    def __init__(self, rnn_type="lstm"):
        super().__init__()
        self.embedding = nn.Embedding(258, 8)
        self.lstm = self.rnn_types[rnn_type](8, 12, num_layers=1, bidirectional=False, batch_first=True)
        self.out_layer = nn.Linear(12, 2)

    def forward(self, x, hidden=None):
        x = self.embedding(x)  # -> [B, T, D]
        x, _ = self.lstm(x, hidden)  # -> [B, T, H]
        x = x[:, -1, :]  # -> [B, H]
        return self.out_layer(x)  # -> [B, C]


def train(model, criterion, optimizer, train_loader, epoch, privacy_engine, target_delta):
    model.train()
    for x, y in train_loader:
        optimizer.zero_grad()
        logits = model(x)
        loss = criterion(logits, y)
        loss.backward()
        optimizer.step()
    epsilon = privacy_engine.accountant.get_epsilon(delta=target_delta)
    print(f"Epoch={epoch} (ε = {epsilon:.2f}, δ = {target_delta})")


def main():
    torch.manual_seed(0)
    train_loader = DataLoader(NamesDataset(), batch_size=16, collate_fn=padded_collate)
    model = CharNNClassifier()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    privacy_engine = PrivacyEngine(secure_mode=False)
    generator = torch.Generator()
    model, optimizer, train_loader = privacy_engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=train_loader,
        noise_multiplier=1.0,
        max_grad_norm=1.5,
        noise_generator=generator,  # a seed
        batch_first=True,
    )
    for epoch in range(2):
        train(model, criterion, optimizer, train_loader, epoch, privacy_engine, 1e-3)


if __name__ == "__main__":
    main()
