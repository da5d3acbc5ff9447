import HandheldFlash
import HandheldKit
import SwiftUI

/// A conversation with the language model of a pack, within a memory budget that the person chooses.
struct ChatView: View {
    @StateObject private var chat: Chat

    init(folder: URL) {
        _chat = StateObject(wrappedValue: Chat(folder: folder))
    }

    var body: some View {
        VStack(spacing: 8) {
            ScrollView {
                VStack(alignment: .leading, spacing: 12) {
                    ForEach(chat.lines) { line in
                        Text(line.text)
                            .foregroundStyle(line.isAnswer ? .black : .secondary)
                            .textSelection(.enabled)
                            .frame(maxWidth: .infinity, alignment: line.isAnswer ? .leading : .trailing)
                    }
                }
                .padding()
            }
            if let message = chat.message { Text(message).foregroundStyle(.red).padding(.horizontal) }
            Text(chat.status).font(.caption).foregroundStyle(.secondary)
            DeviceMeter().font(.caption).padding(.horizontal)
            HStack(spacing: 8) {
                Text("\(Int(chat.budgetMegabytes)) MB")
                Slider(value: $chat.budgetMegabytes, in: 64...4096, step: 64).disabled(chat.isRunning)
                Button("New", systemImage: "square.and.pencil") { chat.restart() }.disabled(chat.isRunning)
                if let profile = chat.profileFile { ShareLink("Share the profile", item: profile) }
            }
            .padding(.horizontal)
            HStack(spacing: 8) {
                TextField("Message", text: $chat.draft).onSubmit { chat.send() }
                Button(chat.isRunning ? "Stop" : "Send") { chat.isRunning ? chat.stop() : chat.send() }
            }
            .padding()
        }
        .navigationTitle(chat.name)
        .task { await chat.heedMemory() }
        .onDisappear { chat.stop() }
    }
}
