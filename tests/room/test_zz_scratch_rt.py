import sys; sys.path.insert(0,"/work/main/tests/room"); sys.path.insert(0,"/work/main/tests")
from test_room_media import *
from test_room_media import env as base_env

async def test_realtime(start_world, env, providers):
    settings = {**env, "CONVERSATION_MODE":"realtime", "REALTIME_BASE_URL":providers.v1, "OPENAI_API_KEY":"sandbox"}
    world = await start_world(env=settings)
    try:
        device = await greeted(world)
        story = sound_of(STORY)
        await device.say(PLAY)
        started = await device.wait_for_message("music_playback_started", timeout=30)
        heard = await seconds_heard(device, device.heard.length, 4.0)
        print("play align", align(heard, story[: 2 * RATE], RATE))
        n=len(providers.realtime.sessions[-1].requests)
        before=len(device.messages)
        await device.say(PAUSE)
        await device.wait_for_message("user_input_transcribed", where=lambda m: m.data["transcript"] == PAUSE, timeout=20)
        paused = await device.wait_for_silence(2.5, timeout=20)
        print("after pause", [(m.type, m.data) for m in device.messages[before:]])
        before=len(device.messages)
        await device.say(GO_ON)
        await device.wait_for_sound(after=paused + 1.0, timeout=20)
        await seconds_heard(device, device.heard.length, 4.0)
        print("after go on", [(m.type, m.data) for m in device.messages[before:]])
        before=len(device.messages)
        await device.say(STOP)
        await device.wait_for_message("music_playback_stopped", timeout=20)
        await device.wait_for_silence(3.0, timeout=20)
        print("after stop", [(m.type, m.data) for m in device.messages[before:]])
        print("requests", n, len(providers.realtime.sessions[-1].requests))
        before=len(device.messages)
        await device.say(HELLO)
        await device.wait_for_state("speaking", after=before, timeout=20)
        await device.wait_for_silence(1.0, timeout=20)
        print("after hello", [(m.type, m.data, m.json) for m in device.messages[before:]])
        assert device.audio_tracks==1
        await device.leave(); await visit_ended(world)
    finally:
        for l in world.worker.lines:
            if l.fields.get("level") in ("warning","error"): print(l.text[:400])
    assert not own_errors(world)
