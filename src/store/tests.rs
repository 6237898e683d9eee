//! The store as a whole: writers, readers, crashes at every byte.

use std::io::Read;

use super::*;
use crate::pg::SegmentSize;
use crate::pg::wal_fixture::{Random, RandomWal, SEGMENT_BYTES, SYSTEM_IDENTIFIER};

pub(super) const TIMELINE: TimelineId = TimelineId(1);

fn first_timeline() -> TimelineIdentity {
    TimelineIdentity { timeline: TIMELINE, parent: None, branch: None }
}

pub(super) fn new_store(folder: &Path, start: Lsn) -> (Store, Writer) {
    let segment_size = SegmentSize::new(SEGMENT_BYTES).unwrap();
    let store =
        Store::create(folder, NewStore { system_identifier: SYSTEM_IDENTIFIER, segment_size }).unwrap();
    let mut writer = store.writer().unwrap();
    writer.begin_timeline(first_timeline(), None, start).unwrap();
    (store, writer)
}

/// Batches that end where records end, as PostgreSQL's messages do.
fn batches(wal: &RandomWal, seed: u64) -> Vec<(Lsn, &[u8])> {
    let mut random = Random::new(seed);
    let (mut batches, mut at) = (Vec::new(), wal.start);
    for &end in &wal.record_ends {
        if random.below(4) == 0 || Some(&end) == wal.record_ends.last() {
            batches.push((at, &wal.bytes[(at - wal.start) as usize..(end - wal.start) as usize]));
            at = end;
        }
    }
    batches
}

pub(super) fn read_all(store: &Store, from: Lsn, visibility: Visibility) -> Vec<u8> {
    let mut cursor = store.raw_cursor(TIMELINE, from, visibility).unwrap();
    let mut raw = Vec::new();
    while let RawStep::Bytes { start, data } = cursor.next().unwrap() {
        assert_eq!(start, from + raw.len() as u64);
        raw.extend_from_slice(&data);
    }
    raw
}

/// Ships everything from one store to the end of another.
fn ship(from: &Store, to: &mut Writer) {
    let (timeline, lsn) = to.end().unwrap();
    let frame = to.open_frame().unwrap();
    let mut cursor = from.cursor(timeline, lsn, Visibility::Appended).unwrap().resume(&frame).unwrap();
    while let Step::Chunk(chunk) = cursor.next().unwrap() {
        to.append_chunk(&chunk).unwrap();
    }
}

pub(super) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains(".zst"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn what_is_appended_is_read_back_from_any_record() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(1, 2_000);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    for (lsn, raw) in batches(&wal, 1) {
        writer.append(lsn, raw).unwrap();
    }
    assert!(wal.end() - wal.start > 2 * SEGMENT_BYTES, "the fixture spans segments");
    assert!(read_all(&store, wal.start, Visibility::Appended) == wal.bytes);
    let durable = *store.positions().borrow();
    assert!(durable.durable < durable.appended, "sealed segments only");
    writer.sync().unwrap();
    assert!(read_all(&store, wal.start, Visibility::Durable) == wal.bytes);
    for &from in wal.record_ends.iter().step_by(97) {
        assert!(read_all(&store, from, Visibility::Appended) == wal.bytes[(from - wal.start) as usize..]);
    }
    assert_eq!(store.last_record_end(TIMELINE).unwrap(), wal.record_ends.last().copied());
}

#[test]
fn a_store_in_step_has_the_same_bytes_and_any_zstd_reads_them() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wal = RandomWal::new(2, 1_500);
    let (source, mut writer) = new_store(one.path(), wal.start);
    let (target, mut copy) = new_store(two.path(), wal.start);
    for (lsn, raw) in batches(&wal, 2) {
        writer.append(lsn, raw).unwrap();
        ship(&source, &mut copy);
    }
    assert!(files(one.path()) == files(two.path()));
    assert!(read_all(&target, wal.start, Visibility::Appended) == wal.bytes);
    let (name, sealed) = files(one.path()).into_iter().find(|(name, _)| name.ends_with(".zst")).unwrap();
    let segment = zstd::stream::decode_all(&sealed[..]).unwrap();
    assert!(segment == wal.bytes[..segment.len()] && segment.len() as u64 == SEGMENT_BYTES, "{name}");
}

#[test]
fn a_reader_that_lost_step_gets_a_private_frame_and_keeps_what_it_has() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wal = RandomWal::new(3, 1_500);
    let (source, mut writer) = new_store(one.path(), wal.start);
    let (target, mut copy) = new_store(two.path(), wal.start);
    let mut random = Random::new(3);
    for (lsn, raw) in batches(&wal, 3) {
        writer.append(lsn, raw).unwrap();
        match random.below(12) {
            0 => {
                // The target is restarted: it goes on within its frame.
                drop(copy);
                copy = target.writer().unwrap();
            }
            1 => {
                // The source is restarted: it closes its frame and begins another.
                drop(writer);
                writer = source.writer().unwrap();
            }
            2 => ship(&source, &mut copy),
            _ => {}
        }
    }
    ship(&source, &mut copy);
    assert!(read_all(&target, wal.start, Visibility::Appended) == wal.bytes);
    assert!(files(one.path()) == files(two.path()), "restarts alone never break step");
}

#[test]
fn frames_that_differ_are_bridged() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wal = RandomWal::new(4, 1_200);
    let (source, mut writer) = new_store(one.path(), wal.start);
    let (target, mut copy) = new_store(two.path(), wal.start);
    let all = batches(&wal, 4);
    let half = all.len() / 2;
    for (lsn, raw) in &all {
        writer.append(*lsn, raw).unwrap();
    }
    // Same content, other batches: other compressed bytes.
    for pair in all[..half].chunks(2) {
        copy.append(pair[0].0, &pair.iter().flat_map(|(_, raw)| raw.iter().copied()).collect::<Vec<u8>>())
            .unwrap();
    }
    ship(&source, &mut copy);
    assert!(read_all(&target, wal.start, Visibility::Appended) == wal.bytes);
}

#[test]
fn a_crash_at_any_byte_keeps_what_was_durable_and_only_whole_records() {
    for seed in 0..12 {
        let folder = tempfile::tempdir().unwrap();
        let wal = RandomWal::new(seed, 120);
        let (store, mut writer) = new_store(folder.path(), wal.start);
        let all = batches(&wal, seed);
        let mut random = Random::new(seed);
        let mut durable = wal.start;
        let durable_until = random.below(all.len() as u64) as usize;
        let mut durable_size = 0;
        for (index, (lsn, raw)) in all.iter().enumerate() {
            writer.append(*lsn, raw).unwrap();
            if index == durable_until {
                durable = writer.sync().unwrap();
                durable_size = open_file(folder.path()).map_or(0, |path| path.metadata().unwrap().len());
            }
        }
        drop((store, writer));
        let Some(path) = open_file(folder.path()) else { continue };
        let size = path.metadata().unwrap().len();
        let same_segment =
            SegmentSize::new(SEGMENT_BYTES).unwrap().start_of(durable) == segment_start(&wal, &path);
        let least = if same_segment { durable_size } else { 0 };
        if size <= least {
            continue;
        }
        let cut = least + random.below(size - least);
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();

        let store = Store::open(folder.path()).unwrap();
        let mut writer = store.writer().unwrap();
        let (_, end) = writer.end().unwrap();
        assert!(end >= durable, "seed {seed}: recovered {end}, durable {durable}");
        assert!(
            end.is_page_boundary() || wal.record_ends.contains(&end),
            "seed {seed}: {end} is no safe cut"
        );
        assert!(read_all(&store, wal.start, Visibility::Appended) == wal.bytes[..(end - wal.start) as usize]);
        writer.append(end, &wal.bytes[(end - wal.start) as usize..]).unwrap();
        assert!(read_all(&store, wal.start, Visibility::Appended) == wal.bytes, "seed {seed}");
    }
}

#[test]
fn a_full_segment_that_was_not_sealed_is_sealed_before_the_next_begins() {
    let wal = RandomWal::new(9, 1_500);
    let segment_end = wal.start + SEGMENT_BYTES;
    for seal_bytes in [0, 100] {
        let folder = tempfile::tempdir().unwrap();
        let (store, mut writer) = new_store(folder.path(), wal.start);
        writer.append(wal.start, &wal.bytes[..SEGMENT_BYTES as usize]).unwrap();
        drop((store, writer));
        // The process was killed while it wrote the seal, before the file got its last name.
        let (name, sealed) = files(folder.path()).remove(0);
        let content_bytes =
            sealed.windows(4).rposition(|bytes| bytes == 0x184D_2A50_u32.to_le_bytes()).unwrap();
        std::fs::remove_file(folder.path().join(&name)).unwrap();
        let path = folder.path().join(name + ".part");
        std::fs::write(path, &sealed[..content_bytes + seal_bytes]).unwrap();

        let store = Store::open(folder.path()).unwrap();
        let mut writer = store.writer().unwrap();
        assert_eq!(writer.end(), Some((TIMELINE, segment_end)));
        assert_eq!(store.positions().borrow().sealed, segment_end);
        writer.append(segment_end, &wal.bytes[SEGMENT_BYTES as usize..]).unwrap();
        assert!(files(folder.path())[0].1 == sealed);
        assert!(read_all(&store, wal.start, Visibility::Appended) == wal.bytes);
        drop((store, writer));
        let store = Store::open(folder.path()).unwrap();
        assert!(read_all(&store, wal.start, Visibility::Durable) == wal.bytes);
    }
}

#[test]
fn garbage_behind_the_durable_end_is_dropped() {
    for (seed, garbage) in [(1, vec![0u8; 5_000]), (2, vec![0xFF; 5_000]), (3, b"(\xB5/\xFD".to_vec())] {
        let folder = tempfile::tempdir().unwrap();
        let wal = RandomWal::new(seed, 20);
        let (store, mut writer) = new_store(folder.path(), wal.start);
        writer.append(wal.start, &wal.bytes).unwrap();
        writer.sync().unwrap();
        drop((store, writer));
        let Some(path) = open_file(folder.path()) else { continue };
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(&garbage);
        std::fs::write(&path, bytes).unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(read_all(&store, wal.start, Visibility::Durable) == wal.bytes, "seed {seed}");
    }
}

#[test]
fn a_timeline_switch_is_followed_and_the_surplus_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(5, 900);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    for (lsn, raw) in batches(&wal, 5) {
        writer.append(lsn, raw).unwrap();
    }
    let switch = wal.record_ends[wal.record_ends.len() / 3];
    let size = store.identity().segment_size;
    let mut reader = store.raw_cursor(TIMELINE, wal.start, Visibility::Appended).unwrap();
    writer.end_timeline(switch).unwrap();
    let next = TimelineIdentity {
        timeline: TimelineId(2),
        parent: Some((TIMELINE, switch)),
        branch: Some(Branch { epoch: 1, node: "db2".into() }),
    };
    let start = size.start_of(switch);
    writer.begin_timeline(next, Some(b"1\t0/1\tx\n"), start).unwrap();
    writer.append(start, &wal.bytes[(start - wal.start) as usize..]).unwrap();
    let mut raw = Vec::new();
    let ended = loop {
        match reader.next().unwrap() {
            RawStep::Bytes { data, .. } => raw.extend_from_slice(&data),
            other => break other,
        }
    };
    assert_eq!(ended, RawStep::Switched { next: TimelineId(2), lsn: switch });
    assert!(raw == wal.bytes[..(switch - wal.start) as usize]);
    let capsules = files(&folder.path().join("capsules"));
    let [(name, capsule)] = &capsules[..] else { panic!("{} capsules", capsules.len()) };
    assert_eq!(*name, format!("00000001-{:016X}-{:016X}.wal.zst", switch.0, wal.end().0));
    let surplus = zstd::stream::decode_all(&capsule[..]).unwrap();
    assert!(surplus == wal.bytes[(switch - wal.start) as usize..], "all of it, as it was");
    assert!(surplus.len() as u64 > SEGMENT_BYTES, "over more than a segment");
    writer.sync().unwrap();
    drop((store, writer, reader));

    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.newest_timeline(), Some(TimelineId(2)));
    assert_eq!(store.positions().borrow().durable, wal.end());
    assert_eq!(&store.history(TimelineId(2)).unwrap().unwrap()[..], b"1\t0/1\tx\n");
    let mut cursor = store.cursor(TIMELINE, switch, Visibility::Appended).unwrap();
    assert_eq!(cursor.next().unwrap(), Step::Switched { next: TimelineId(2), lsn: switch });
}

#[test]
fn positions_that_are_not_there_have_their_own_answers() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(6, 300);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    writer.append(wal.start, &wal.bytes).unwrap();
    let beyond = wal.end() + 8192;
    assert_eq!(
        store.raw_cursor(TIMELINE, beyond, Visibility::Appended).unwrap().next().unwrap(),
        RawStep::AtEnd
    );
    let below = store.raw_cursor(TIMELINE, Lsn(8), Visibility::Appended);
    assert!(matches!(below.err(), Some(StoreError::Removed { .. })));
    let unknown = store.raw_cursor(TimelineId(9), wal.start, Visibility::Appended);
    assert!(matches!(unknown.err(), Some(StoreError::UnknownTimeline { .. })));
    assert!(matches!(writer.append(beyond, b"x"), Err(StoreError::Gap { .. })));
    assert!(matches!(store.writer(), Err(StoreError::WriterTaken)));
    assert!(matches!(Store::open(folder.path()), Err(StoreError::Locked { .. })));
    assert!(matches!(Store::open(Path::new("/nonexistent")), Err(StoreError::Missing { .. })));
}

#[test]
fn a_reader_waiting_beyond_the_end_gets_what_it_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(8, 50);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    let (early, late) = (wal.record_ends[10], wal.record_ends[30]);
    writer.append(wal.start, &wal.bytes[..(early - wal.start) as usize]).unwrap();
    let mut raw = store.raw_cursor(TIMELINE, late, Visibility::Appended).unwrap();
    let mut chunks = store.cursor(TIMELINE, late, Visibility::Appended).unwrap();
    assert_eq!((raw.next().unwrap(), chunks.next().unwrap()), (RawStep::AtEnd, Step::AtEnd));
    writer.append(early, &wal.bytes[(early - wal.start) as usize..]).unwrap();
    let RawStep::Bytes { start, data } = raw.next().unwrap() else { panic!("nothing came") };
    assert_eq!(start, late);
    assert!(wal.bytes[(late - wal.start) as usize..].starts_with(&data));
    let Step::Chunk(chunk) = chunks.next().unwrap() else { panic!("nothing came") };
    assert!(chunk.start == late && chunk.opens_frame);
}

pub(super) fn open_file(folder: &Path) -> Option<PathBuf> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().ends_with(".part"))
}

fn segment_start(wal: &RandomWal, path: &Path) -> Lsn {
    let size = SegmentSize::new(SEGMENT_BYTES).unwrap();
    let name = path.file_name().unwrap().to_string_lossy();
    let (_, number) = size.parse_file_name(&name[..24]).unwrap();
    size.first_lsn(number).max(wal.start)
}

#[test]
fn a_segment_that_is_being_sealed_can_be_opened_for_reading() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(9, 100);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    writer.append(wal.start, &wal.bytes).unwrap();
    // The seal renames the file first and tells the index then.
    for (name, _) in files(folder.path()) {
        if let Some(sealed) = name.strip_suffix(".part") {
            std::fs::rename(folder.path().join(&name), folder.path().join(sealed)).unwrap();
        }
    }
    assert!(read_all(&store, wal.start, Visibility::Appended) == wal.bytes);
}

#[test]
fn a_reader_in_step_is_served_from_memory_with_the_bytes_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(23, 400);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    let mut cursor = store.cursor(TIMELINE, wal.start, Visibility::Appended).unwrap();
    let mut raw = store.raw_cursor(TIMELINE, wal.start, Visibility::Durable).unwrap();
    let (mut from_memory, mut from_disk, mut shipped) = (0, 0, Vec::new());
    for (start, batch) in batches(&wal, 24) {
        writer.append(start, batch).unwrap();
        loop {
            let step = match cursor.ready() {
                Some(step) => {
                    from_memory += 1;
                    step
                }
                None => {
                    from_disk += 1;
                    cursor.next().unwrap()
                }
            };
            let Step::Chunk(chunk) = step else { break };
            shipped.extend_from_slice(&chunk.bytes);
        }
        assert_eq!(cursor.lsn(), start + batch.len() as u64);
        store.sync().unwrap();
        assert!(!raw.is_at_end());
        while let RawStep::Bytes { .. } = raw.next().unwrap() {}
        let is_whole = cursor.lsn() == store.identity().segment_size.start_of(cursor.lsn());
        assert!(raw.is_at_end() || is_whole);
    }
    assert!(from_memory > 10 * from_disk, "{from_memory} steps from memory, {from_disk} from the disk");
    let mut decoded = Vec::new();
    zstd::stream::read::Decoder::new(&shipped[..]).unwrap().read_to_end(&mut decoded).ok();
    assert!(decoded.len() > wal.bytes.len() / 2 && wal.bytes.starts_with(&decoded));
}
